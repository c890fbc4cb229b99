"""What an evaluation leaves for people: page, tables, sentences, pictures."""
