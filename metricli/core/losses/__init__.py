"""Losses as pure functions of distances, cosines and labels; a file for each family."""
