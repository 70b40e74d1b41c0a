"""Surgery: changes of an existing model, such as injection, ejection and unlearning."""
