"""Tests of the bench's own parts: what it computes, what it starts, and its backend."""
