"""Records of sessions in the store: their rows, epochs, states and reports."""
