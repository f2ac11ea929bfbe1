"""The inspector page: the data of one prediction (`data`), and the HTML file around it (`html`)."""
