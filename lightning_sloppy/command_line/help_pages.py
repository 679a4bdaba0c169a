"""The help pages: plain text, so that they appear without importing torch. Tests compare them with the classes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

WIDTH = 96

VERBS = {
    "fit": "train and measure",
    "certify": "optimise and save a PAC-Bayes certificate for a checkpoint",
    "spectrum": "measure a checkpoint without training",
    "compress": "make the network of a checkpoint smaller, by its training data",
    "inspect": "look at a table or at the samples of a data module, before any model",
    "report": "write the report of a run, or of several next to each other, as one HTML page",
    "validate": "as in Lightning, and so are test and predict",
    "test": "",
    "predict": "",
}
"""The verbs with what they do; an empty text is not listed."""

LIGHTNING_VERBS = ("fit", "validate", "test", "predict", "certify", "spectrum", "compress")
"""Verbs that take a model, data and a Trainer."""

MAIN = """\
lightning-sloppy measures how many directions a network and its data use, and guarantees an error.

It trains a LightningModule and measures, while it trains, the spectra of the Hessian, the Fisher
matrix, the Jacobian and the inputs, effective dimensions, and PAC-Bayes bounds.

{verbs}

Examples:
{examples}

More: lightning-sloppy VERB --help. --version prints versions, --debug the traceback of an error.
Exit codes: 0 fine; 1 it failed, or there is no certificate; 2 wrong input.
"""

EXAMPLES = (
    ("fit --config configs/digits.yaml", "train and measure"),
    ("certify --config run/config.yaml --ckpt_path last.ckpt", "guarantee an error"),
    ("spectrum --config run/config.yaml --ckpt_path last.ckpt", "no training"),
    ("report lightning_logs/version_0 lightning_logs/version_1", "compare runs"),
    ("inspect table.csv --target failed", "before any model"),
)
"""The examples of the first page: arguments, and what they do."""

CALLBACKS = (
    ("SloppyMonitor", "all but the last four", "every_n_epochs max_overhead bound"),
    ("JacobianSpectrum", "effective dimension to quote", "num_samples outputs normalize"),
    ("HessianSpectrum", "eigenpairs and trace", "k probes num_samples parameters"),
    ("FisherSpectrum", "all eigenvalues on the probe samples", "kind num_samples"),
    ("InputSpectrum", "spectrum of the training inputs", "kind max_samples"),
    ("PACBayesBound", "a bound at every measurement", "delta prior clean"),
    ("FinalCertificate", "a tighter bound at the end", "delta prior learning.seconds"),
    ("EffectiveDimensionEarlyStopping", "stop when loss and dimension settle", "patience hold_out"),
    ("DistanceToInit", "keep the weights near their start", "gamma"),
    ("ValidationErrors", "errors by where inputs lie", "num_samples bins predict"),
)
"""The callbacks of this package: name, purpose, the arguments that are used most."""

MODELS = ("MLPClassifier", "MLPRegressor")
DATA = ("DigitsDataModule", "IDXDataModule", "PriorSplit")

TRAINER = ("max_epochs", "accelerator", "devices", "precision", "logger", "default_root_dir", "fast_dev_run")
"""The arguments of Lightning's Trainer that are used most."""


def main_page() -> str:
    """The page of ``lightning-sloppy`` alone."""
    named = {verb: text for verb, text in VERBS.items() if text}
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in named.items())
    # An explanation stands behind its command if both fit into the line.
    lines = [f"  lightning-sloppy {command:<57}{text and f'# {text}'}".rstrip() for command, text in EXAMPLES]
    return MAIN.format(verbs=verbs, examples="\n".join(lines))


def page(verb: str) -> str:
    """The page of one of Lightning's verbs or ours."""
    return "\n".join([_HEADS[verb], *_OWN.get(verb, _FIT), "", _more(verb)]) + "\n"


def _more(verb: str) -> str:
    return "\n".join(
        [
            "More:",
            f"  lightning-sloppy {verb} --help NAME          arguments of a class, for instance HessianSpectrum",
            f"  lightning-sloppy {verb} --help trainer       all arguments of the Trainer",
            f"  lightning-sloppy {verb} --help all           everything that the parser knows",
            f"  lightning-sloppy {verb} ... --print_config   the whole configuration, without running",
        ]
    )


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    wide = max(len(name) for name, _ in rows) + 2
    return [f"  {name:<{wide}}{text}" for name, text in rows]


_CONFIGURATION = [
    "  -c, --config FILE     configuration in YAML; options behind it change single values",
    "  --json FILE           write the result as JSON",
    "  --seed_everything N   seed of the run (0)",
]

_FIT = [
    "",
    "Callbacks of this package, in --trainer.callbacks NAME, and what is set most in each:",
    *_table((name, f"{purpose} ({arguments.replace(' ', ', ')})") for name, purpose, arguments in CALLBACKS),
    "  One after another: --trainer.callbacks+=NAME --trainer.callbacks.ARGUMENT VALUE",
    "",
    "Model and data: your classes as module.Class, from the working folder or installed, or one of ours:",
    f"  --model CLASS --model.ARGUMENT VALUE    ours: {', '.join(MODELS)}",
    f"  --data CLASS --data.ARGUMENT VALUE      ours: {', '.join(DATA)}",
    "",
    "Training, in --trainer.ARGUMENT VALUE:",
    _wrapped(", ".join(TRAINER)),
    "",
    "Run:",
    *_CONFIGURATION,
    "  --ckpt_path FILE      continue from a checkpoint",
]

_HEADS = {
    "fit": "usage: lightning-sloppy fit --config FILE [--OPTION VALUE ...]\n\nTrain, and measure while training.",
    "validate": "usage: lightning-sloppy validate --config FILE [--OPTION VALUE ...]\n\nEvaluate on held-out data.",
    "test": "usage: lightning-sloppy test --config FILE [--OPTION VALUE ...]\n\nEvaluate on test samples.",
    "predict": "usage: lightning-sloppy predict --config FILE [--OPTION VALUE ...]\n\nRun the predictions of a module.",
    "certify": "usage: lightning-sloppy certify --config FILE --ckpt_path FILE [--OPTION VALUE ...]\n\n"
    "Optimise a posterior around a checkpoint for its PAC-Bayes bound, draw two networks, certify and\n"
    "save them. Exit code 1 if there is no certificate.",
    "spectrum": "usage: lightning-sloppy spectrum --config FILE --ckpt_path FILE [--OPTION VALUE ...]\n\n"
    "Measure a checkpoint without training, on training samples: spectra of Jacobian, Hessian, Fisher\n"
    "matrix and inputs with their effective dimensions. What needs a fit is left out.",
    "compress": "usage: lightning-sloppy compress --config FILE --ckpt_path FILE [--OPTION VALUE ...]\n\n"
    "Make the network of a checkpoint smaller: each linear or convolution layer becomes two of low rank,\n"
    "best for the training data. Give one of --max_drop, --size and --keep.",
}

CERTIFY = {
    "ckpt_path": "FILE: the checkpoint",
    "prior": "initialization, pretrained, curvature, split or pretrained_split",
    "delta": "failure probability (that of the run, else 0.05)",
    "learning.seconds": "limit on the time of learning",
    "learning.spread": "what gets a deviation of its own: weights, layers or kronecker",
    "loss_fn": "the loss as a dotted path, if it is not found in the module",
    "duplicates": "natural or copies: your statement about equal samples",
    "clean": "samples without random transforms: a method of the data module",
    "folder": "where to save (certificate beside the checkpoint)",
    "weights_only": "false for a checkpoint that you trust and that holds more than plain values",
}
"""The arguments of ``certify``."""

SPECTRUM = {
    "ckpt_path": "FILE: the checkpoint",
    "weights_only": CERTIFY["weights_only"],
}
"""The arguments of ``spectrum``."""

COMPRESS = {
    "ckpt_path": "FILE: the checkpoint",
    "max_drop": "the smallest size found whose validation metric is at most so much worse",
    "size": "at most this fraction of the size",
    "keep": "share of its output variance that every layer keeps",
    "monitor": "the validation metric (that of the configuration, else the only score)",
    "direction": "max or min: which values of it are better, if its name does not say",
    "num_samples": "training samples for the statistics (8192)",
    "out": "FILE: the compressed checkpoint (small.ckpt)",
    "weights_only": CERTIFY["weights_only"],
}
"""The arguments of ``compress``."""


def _of_a_checkpoint(options: Mapping[str, str]) -> list[str]:
    return [
        "",
        "Options:",
        *_table((f"--{name}", text) for name, text in options.items()),
        "",
        "Run:",
        *_CONFIGURATION,
        "",
        "Give the model and the data as in the training: its configuration is beside its logs (config.yaml).",
    ]


_OWN = {
    "compress": [
        *_of_a_checkpoint(COMPRESS),
        "To fine-tune: fit ... --trainer.callbacks+=LowRank --trainer.callbacks.checkpoint small.ckpt",
    ],
    "certify": _of_a_checkpoint(CERTIFY),
    "spectrum": [
        "",
        "Options:",
        *_table((f"--{name}", text) for name, text in SPECTRUM.items()),
        "",
        "What is measured: the instruments in --trainer.callbacks; without any, those of a SloppyMonitor.",
        *_table((name, arguments.replace(" ", ", ")) for name, _, arguments in CALLBACKS[1:5]),
        "",
        "Run:",
        *_CONFIGURATION,
        "",
        "Give the model and the data as in the training: its configuration is beside its logs (config.yaml).",
    ],
}
