"""The coordinator: it runs a federation's registry, admits its nodes, commits its rounds."""
