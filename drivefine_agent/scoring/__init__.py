"""The PDM score: preparing scenes from logs and maps, keeping them, and scoring trajectories in them.

The entries are `build.build_scoring_scene`, `cache.SceneCache` and `scorer.score_v1`. Nothing is imported
here, so that importing one part does not load the compiled kernels of the others.
"""
