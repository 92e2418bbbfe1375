"""What the paper compares its student with: each method's loss, at a scale that trains on two cores."""
