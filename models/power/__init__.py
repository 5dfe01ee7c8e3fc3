"""What does a watt do?"""
