"""DriveFine: a masked-diffusion vision-language-action driving planner for NAVSIM."""
