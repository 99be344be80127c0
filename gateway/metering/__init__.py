"""The durable usage log of one worker and the reader that ships it."""
