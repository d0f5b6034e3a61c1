"""One folder per way of making the kernel agree; each holds a pure plan and a kernel adapter."""
