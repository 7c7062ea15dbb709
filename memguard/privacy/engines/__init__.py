"""Ways to get the clipped sum of the gradients of each patient, behind one interface."""
