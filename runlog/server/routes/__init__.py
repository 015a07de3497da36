"""
The HTTP routes, a module for each audience.

``logs`` is Prefect's, to the letter; ``batches`` takes runlog's own producers'
lines; ``reading`` answers the command line and programs; ``admin`` says how the
server is. Each module has ``ROUTES``, with paths below ``/api``.
"""
