"""The toolkit of pages: tables, formats, figures and one template. It knows no study."""
