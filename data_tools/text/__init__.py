"""What the steps share about texts: their language and their prompts."""
