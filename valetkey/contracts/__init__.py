"""What the programs say to each other, and the few things that all of them do alike."""
