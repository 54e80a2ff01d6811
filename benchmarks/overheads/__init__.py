"""What kvtide itself costs beside the model: see __main__."""
