"""What each curve means and what to do about it: the text behind every tag, one table for each group.

Letters: ``N`` probe samples, ``n`` training samples, ``p`` parameters, ``z = epsilon / (2 (n - 1))`` the curvature
scale. The same sentences stand in the tables of ``docs/reading_the_curves.md``.
"""

from __future__ import annotations

_COVARIANCE = "the covariance matrix (features centred, their scales kept)"
_SECOND_MOMENT = "the uncentred second-moment matrix (the mean counts as a direction)"

INPUT = {
    "decades": "Powers of ten between the largest and the smallest resolved eigenvalue of the correlation matrix. Six "
    "or more is called sloppy; near zero means that the features are nearly independent.",
    "slope": "Fitted change of log10 of the eigenvalue per index behind the knee. Steeper means that fewer directions "
    "of the data matter; close to zero means that all matter alike.",
    "slope_r_squared": "How well a straight line fits log10 of the eigenvalues behind the knee. Near 1 the spectrum is "
    "spread evenly in the logarithm; below about 0.9 do not quote the slope.",
    "knee": "Index at which the sharp first drop ends and the even tail begins. The directions before it are the ones "
    "that a linear model would use first.",
    "floor": "Eigenvalues below this are rounding noise. They are counted nowhere.",
    "resolved": "Number of eigenvalues above the floor. If it is below the number of features, some features are exact "
    "combinations of others and can be removed.",
    "participation_ratio": "(sum lambda)^2 / sum lambda^2 of the correlation matrix: the effective dimension of the "
    "inputs. Compare it with the number of features and with the width of the first layer.",
    "effective_rank": "Trace over largest eigenvalue of the correlation matrix. Close to 1 means that one direction "
    "dominates: look for a common cause, a drift or a missing normalisation.",
    "entropy_rank": "exp of the entropy of the eigenvalues divided by their sum. Counts weak directions more than the "
    "participation ratio does, so a wide gap between both means a long tail.",
    "trace": "Sum of the eigenvalues of the correlation matrix, which is the number of columns that are not constant. "
    "A check rather than a curve.",
    "largest": "Largest eigenvalue of the correlation matrix. Divided by the trace it is the share of the variance in "
    "a single direction.",
    "num_features": "Columns d in the headline matrix (the correlation leaves constant ones out). The denominator for "
    "every dimension of this group.",
    "constant_columns": "Features that never change; they have no correlation and are left out. Remove them from the "
    "data or find out why they are constant.",
    "num_samples": "Training samples read for this group. With ten for each feature, sampling alone spreads a flat "
    "spectrum by half a decade; with fewer, by more: raise `max_samples`.",
    "covariance_decades": f"Decades of {_COVARIANCE}. Much more than for the correlation matrix means that the scales "
    "of the features differ: standardise them.",
    "covariance_slope": f"Slope of {_COVARIANCE}, in decades per index. Read it beside the correlation matrix.",
    "covariance_participation_ratio": f"Participation ratio of {_COVARIANCE}. Far below that of the correlation matrix "
    "means that a few features of large scale dominate.",
    "covariance_largest": f"Largest eigenvalue of {_COVARIANCE}. It limits the learning rate of a linear model.",
    "second_moment_decades": f"Decades of {_SECOND_MOMENT}. This is the matrix that the first layer meets.",
    "second_moment_slope": f"Slope of {_SECOND_MOMENT}, in decades per index.",
    "second_moment_participation_ratio": f"Participation ratio of {_SECOND_MOMENT}. Close to 1 means that the mean "
    "drowns everything else: centre the inputs.",
    "second_moment_largest": f"Largest eigenvalue of {_SECOND_MOMENT}. Far above that of the covariance, the mean is "
    "the reason: centre the inputs.",
}

HESSIAN = {
    "largest": "Largest eigenvalue of the Hessian of the mean loss on the probe: the sharpness. Plain gradient descent "
    "is stable while the learning rate is below 2 over this value.",
    "largest_residual": "How far the largest pair is from being an eigenpair, ||H u - lambda u||. If it is not small "
    "against the value, raise `max_products`.",
    "smallest": "Algebraically smallest eigenvalue found. Clearly negative: the point is a saddle and training can "
    "still descend; about zero: there is no way down in second order.",
    "smallest_residual": "How far the smallest pair is from being an eigenpair. This end converges last, so do not "
    "read a small negative value below this size.",
    "trace": "Sum of all eigenvalues of the Hessian, estimated with random probe vectors. It is the mean curvature "
    "times p; falling means that training moves to flatter places.",
    "converged_above_z": "Converged eigenvalues at or above z among the k wanted pairs: a lower bound of the count, at "
    "most k. If it equals k, raise k or read `eigenvalue_count`.",
    "effective_dimension": "N_eff(z) = sum lambda / (lambda + z) over the whole spectrum of the Hessian's Gauss-Newton "
    "part: parameters that the data determine. Compare with p; flat over several measurements means a plateau.",
    "effective_dimension_fine": "The same at z/10, a weaker prior. If it still grows while the curve at z is flat, the "
    "curve at z is at its maximum, not on a plateau.",
    "effective_dimension_coarse": "The same at 10 z, a stronger prior: the stiffest directions only. It settles first.",
    "eigenvalue_count": "p(n, epsilon): eigenvalues of the Gauss-Newton part at or above z. A step function, hence "
    "harder to resolve than N_eff; trust it only where its errors are small.",
    "gauss_newton_trace": "Trace of the Gauss-Newton part. Its gap to the trace of the Hessian is the part that comes "
    "from unfitted residuals; it closes as the training loss goes to zero.",
    "loss": "Mean loss on the probe samples, in the mode of the measurement. If it departs from the training loss, the "
    "probe is not representative: raise `num_samples`.",
    "gradient_share": "Share of the squared gradient that lies in the space of the k top eigenvectors. Far above the "
    "baseline: training moves mostly along a few stiff directions, across the valley and not along it.",
    "displacement_share": "Share of the squared displacement from the initial weights that lies in that space. Well "
    "above the baseline: what was learnt is in the stiff directions.",
    "subspace_baseline": "k / p, the share that a random direction has in that space. Compare the shares with it.",
    "overlap": "Overlap of the space of the top eigenvectors with that of the measurement before, 0 to 1. Near 1 the "
    "stiff directions have settled; missing at the first measurement and after a resume.",
    "sharpness": "Learning rate times largest eigenvalue. Plain gradient descent hovers about 2, the edge of "
    "stability; with momentum beta about 2 (1 + beta); for Adam there is no such threshold. Missing when "
    "rates differ.",
    "z": "Curvature scale epsilon / (2 (n - 1)) at which data and prior weigh the same. Constant in a run; curves of "
    "two runs compare only at the same z.",
    "epsilon": "Precision of the prior behind z, by default p / ||w0||^2. Pass one `epsilon` to all runs that you want "
    "to compare.",
    "num_parameters": "Trainable parameters p. The denominator for every dimension of this group.",
    "num_samples": "Probe samples N. An effective dimension depends on N: never compare two without it.",
}

FISHER = {
    "largest": "Largest eigenvalue of the Fisher matrix on the probe: how sharply the data determine the stiffest "
    "combination of parameters. A sudden jump is often a few samples with huge gradients.",
    "trace": "Sum of all eigenvalues: for the empirical kind the mean squared norm of the gradient of one sample. It "
    "falls to zero as the samples are fitted.",
    "effective_dimension": "N_eff(z) = sum lambda / (lambda + z), exact on the probe: combinations of parameters that "
    "these samples determine. Compare with p and N; flat at all three scales means a plateau.",
    "effective_dimension_fine": "The same at z/10, a weaker prior. Close to N it is limited by the probe: raise "
    "`num_samples`.",
    "effective_dimension_coarse": "The same at 10 z, a stronger prior: the stiffest directions only.",
    "effective_dimension_half_samples": "The same on the first half of the probe. Well below the full value, the "
    "number still grows with N: read it as a lower end and raise `num_samples`.",
    "eigenvalue_count": "p(n, epsilon): eigenvalues at or above z. Compare with p; the rest of the parameters is left "
    "to the prior.",
    "eigenvalue_count_half_samples": "The same on the first half of the probe, to see how much it depends on N.",
    "participation_ratio": "(sum lambda)^2 / sum lambda^2: a dimension without any scale z. It sees only the stiffest "
    "directions: use it to compare shapes, not to count parameters.",
    "effective_rank": "Trace over largest eigenvalue. Close to 1 means that all samples pull in one direction.",
    "entropy_rank": "exp(-sum p log p) with p = lambda / sum lambda: between the participation ratio and the rank. "
    "Less dominated by the stiffest directions than the participation ratio.",
    "stable_rank": "Squared Frobenius norm over squared largest eigenvalue. Close to 1, one direction carries "
    "everything.",
    "degrees_of_freedom_2": "sum (lambda / (lambda + z))^2, never above N_eff: directions that are determined nearly "
    "fully. A large gap to N_eff means many half-determined ones.",
    "z": "Curvature scale epsilon / (2 (n - 1)) at which data and prior weigh the same. Constant in a run.",
    "epsilon": "Precision of the prior behind z, by default p / ||w0||^2. Pass one `epsilon` to all runs that you want "
    "to compare.",
    "num_parameters": "Trainable parameters p. The denominator for every dimension of this group.",
    "num_samples": "Probe samples N. The rank cannot exceed N (times the classes for the exact kind).",
}

BOUND = {
    "pac_bayes": "PAC-Bayes bound on the true error of the pair of networks drawn around the model, not of the model "
    "itself. Below the error of guessing it is informative; a gap in the curve has its reason in the summary.",
    "hold_out": "Bound on the true error of the model itself from samples that training never saw. The honest "
    "baseline: if it is far lower, use it.",
    "gibbs_error": "Error rate of the drawn pair on a fresh subsample of the training data. Far above the training "
    "error, the posterior is too wide for this minimum.",
    "risk_upper": "The Gibbs error after paying for the subsample. If it is far above `gibbs_error`, raise the number "
    "of samples of the bound.",
    "log_ratio": "ln dQ/dP of the drawn weights to the mixture prior, in nats, mean of the pair: the complexity that "
    "the bound divides by n. It must stay below n for a bound below 1.",
    "kl_displacement": "epsilon/2 ||mu - w0||^2, nats: what moving away from the initial weights costs. Usually nearly "
    "all of the complexity: decay towards the initial weights lowers it.",
    "kl_covariance": "Rest of the KL divergence, nats: what being sure about stiff directions costs.",
    "epsilon": "Prior precision of the grid that fits the posterior best. If it is an end of the grid, widen the grid.",
    "tau": "Weight of the curvature in the posterior precision tau lambda + epsilon. Zero means that curvature did not "
    "help this bound.",
    "mean_scale": "The posterior mean is w0 + mean_scale (w - w0). Below 1, a shrunk model has the better bound.",
    "posterior_dimension": "N_eff = sum tau lambda / (tau lambda + epsilon): how many directions the posterior pins "
    "down. Far above `stiff_directions`, the many flat directions count together.",
    "stiff_directions": "p(n, epsilon): the eigenpairs at hand with tau lambda of at least epsilon. If it is k itself, "
    "more pairs would give a better posterior.",
    "evaluation": "Number t of this evaluation; the failure probability is spent as 6 / (pi^2 t^2).",
    "delta_spent": "Failure probability spent so far by all that this run calls a bound. It never exceeds `delta`.",
    "hold_out_error": "Error rate of the model on the hold-out samples, before the bound is paid for.",
}

CERTIFICATE = {
    "pair": "Final bound on the true error of picking one of the two drawn networks at random, after the posterior was "
    "optimised; the networks and the certificate are files beside the run.",
    "single": "The same for the first of the two networks: one that can be deployed.",
    "gibbs_error": "Error rate of the drawn pair on all certifying examples.",
    "log_ratio": "ln dQ/dP of the drawn weights to the mixture prior, in nats, mean of the pair: divided by n.",
    "kl_displacement": "epsilon/2 ||mu - w0||^2, nats: what the distance from the prior's mean costs.",
    "kl_covariance": "Rest of the KL divergence, nats: what being sure about the weights costs.",
}

_PEAK = (
    "Highest memory of the process so far, when {} ended: torch's allocator on CUDA, resident memory elsewhere. A step "
    "up means that it, or the training before it, needed more than ever before."
)

COST = {
    "seconds_input": "Wall-clock seconds of the input spectrum. Lower `max_samples` if it is too long.",
    "seconds_hessian": "Wall-clock seconds of one Hessian measurement. Lower `k`, `probes` or `num_samples`, or "
    "measure less often.",
    "seconds_fisher": "Wall-clock seconds of one Fisher measurement. It grows with the square of `num_samples`.",
    "seconds_certificate": "Wall-clock seconds of learning and judging the final posterior; `learning.seconds` limits "
    "them.",
    "seconds_bound": "Wall-clock seconds of one evaluation of the bound.",
    "products_hessian": "Matrix-vector products of one Hessian measurement, the Gauss-Newton ones included. A rise at "
    "constant settings means that the spectrum has become harder.",
    "products_fisher": "Matrix-vector products of one Fisher measurement; absent where a Gram matrix was formed.",
    "peak_bytes_hessian": _PEAK.format("a Hessian measurement"),
    "peak_bytes_fisher": _PEAK.format("a Fisher measurement"),
    "peak_bytes_bound": _PEAK.format("an evaluation of the bound"),
    "share": "Seconds of measuring so far per second of training without it. `max_overhead` limits it, beyond the "
    "seconds that `grace_seconds` allows in any case.",
}
