"""What a regression is trained with and judged by."""
