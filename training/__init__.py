"""What only training needs: arguments, model building, collator, trainer, metric, calibration, checkpoints, card."""
