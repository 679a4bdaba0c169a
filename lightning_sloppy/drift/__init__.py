"""Whether later rows are like those of a reference: structure, spectrum and columns beside a null of blocks."""
