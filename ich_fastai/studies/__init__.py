"What the study notebooks share: grids of runs, exploration, features, shortcuts, results."
