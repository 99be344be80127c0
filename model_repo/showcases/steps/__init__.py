"""Sources of the Python steps. The build copies each to `<model>/1/model.py`; none may import another."""
