"""Live: a camera's class, what of it is motion, and where, on a page in the browser, within a budget of time."""
