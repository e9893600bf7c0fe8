"""The work of the commands: prediction on files, comparison of models, costs."""
