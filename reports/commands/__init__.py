"""The commands of `interp`: one file each; what they share in `options`, `steps`, `output`, `errors`."""
