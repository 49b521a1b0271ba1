"""From a plan to a model: observe, choose, emit, and ask the runtime which kernels it took."""
