"""What a distilled quantum student is: its circuit, its engines, its text embedder and its on-disk bundle."""
