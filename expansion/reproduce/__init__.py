"""The tables of the two papers, each as one file and one command: measured beside published.

    schema     the keys of the files in configs/papers
    papers     what these files say: tables, their cells, published values
    scales     a paper's settings at a smaller scale, and what became of each of them
    checks     whether the options of a cell exist, and count for it
    cells      what a cell needs: a set, trainings, a figure
    nodes      a piece of work: what fills a folder, what it needs, whether it is there
    commands   a command as expansion.study makes it
    planning   the commands of all tables, each piece of work once
    running    the work, which goes on where it stopped and past what fails
    readings   the figures and times that commands leave, where they are whole
    results    what was measured, beside what was published
    outputs    text, Markdown, LaTeX, CSV and a page
    listing    all tables, their cost and how far each is
    stand_ins  small CLIPs and checkpoints for rehearsals

Commands, estimates and intervals are those of `expansion.study` and `expansion.metrics`.
"""
