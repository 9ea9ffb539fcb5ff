"""What every stage stands on: parameters, files, the stage runner, progress. No torch is imported here."""
