"""``python -m l2a_ray`` is the command ``l2a``."""

from l2a_ray.cli import main

main()
