"""One page: sections and panels as HTML, the views of panels, head pages, packed attention."""
