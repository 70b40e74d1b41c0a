"""Tables as people have them: read as text, typed by whole columns, encoded by statistics of the training rows."""
