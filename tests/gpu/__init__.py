"""What only a GPU can prove. A package, so that its conftest.py does not hide that of `tests`."""
