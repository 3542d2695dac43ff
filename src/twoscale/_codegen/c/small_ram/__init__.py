"""C for little RAM: layers that compute row by row."""
