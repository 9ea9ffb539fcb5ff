"""The foundation of every stage: parameters, files, the stage runner, progress. Nothing here imports torch."""
