"""Does FCR find the truth? Fits to simulated cells of known latents, over seeds and settings."""
