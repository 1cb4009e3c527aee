"""Programs for whoever works on darkroom itself: the training and the exam of the model in models/shapes."""
