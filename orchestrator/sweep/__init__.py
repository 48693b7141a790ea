"""What is asked: sweep files, their fields, the trials that a sweep stands for, and plug-ins."""
