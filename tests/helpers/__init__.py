"""What tests share and no test owns."""
