"""The local page: photographs are dropped on it, looked at, and corrected.

`session` holds what was dropped and what a network says of it, `corrections` the folder
of corrected annotations, `app` answers the browser, and `page/` is what it shows.
"""
