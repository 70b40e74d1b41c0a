"""What the recipes share: data, models, loop, checkpoints, reports."""
