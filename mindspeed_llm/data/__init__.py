"""Conversations to token ids and labels, and the files in between; no model stack."""
