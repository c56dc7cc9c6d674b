"""What the Hydra plugin adds to every search path: agents for NAVSIM, all named drivefine*."""
