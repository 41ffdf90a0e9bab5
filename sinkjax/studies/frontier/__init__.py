"""What does each number of masked heads cost, by every ranking?"""
