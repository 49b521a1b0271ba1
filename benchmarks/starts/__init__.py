"""The parts of the study of starting points (`initialisation.py`): errors, whole networks, convergence, speed."""
