"""What the commands do: prediction on files, comparison of models, costs."""
