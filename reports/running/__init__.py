"""Running what was asked: analyses, reports, studies; what a page keeps of it, and making it again."""
