"""What only training needs: data sets, planted posts, collator, metric, trainer, curves, card."""
