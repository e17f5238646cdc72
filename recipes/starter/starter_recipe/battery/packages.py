"""The packages that the battery is made of. None of them may be trained on; licences are those of the packages."""

from __future__ import annotations

SUITE, BEFORE = "trixie", "bookworm"
"""Descriptions and applications come from SUITE's index: what BEFORE's index held was trained on once."""

FAQ = """
python-django-doc borgbackup-doc openvswitch-doc privoxy phpmyadmin docutils-doc gammu-doc libfftw3-doc
db5.3-doc valgrind icewm-common dbus-1-doc bogofilter-common restic cyrus-sasl2-doc python-sqlalchemy-doc
cython-doc numba-doc mhonarc sdf-doc xboard fdutils tortoisehg
""".split()  # noqa: SIM905
FAQ_PAGES = ("*[Ff][Aa][Qq]*.html", "*[Ff][Aa][Qq]*.htm", "[Ff][Aa][Qq]/**/*.html")
TRANSLATED_FAQ = {
    "weechat-doc": "usr/share/doc/weechat-doc/html/weechat_faq.{0}.html",
    "mplayer-doc": "usr/share/doc/mplayer/HTML/{1}/faq.html",
    "harden-doc": "usr/share/doc/harden-doc/html/{2}/debian-sec-team-faq.html",
    "apache2-doc": "usr/share/doc/apache2-doc/manual/{3}/**/*faq*.html",
}
TRANSLATED_MANUALS = {
    "weechat-doc": "usr/share/doc/weechat-doc/html/weechat_user.{0}.html",
    "mplayer-doc": "usr/share/doc/mplayer/HTML/{1}/*.html",
    "harden-doc": "usr/share/doc/harden-doc/html/{2}/*.html",
    "apache2-doc": "usr/share/doc/apache2-doc/manual/{3}/*.html",
}
KICAD = "usr/share/doc/kicad/help/{0}/*.html"
LANGUAGE_CODES = {
    "de": ("de", "de", "de-DE", "de"),
    "fr": ("fr", "fr", "fr-FR", "fr"),
    "es": ("es", "es", "es-ES", "es"),
    "ja": ("ja", "ja", "ja-JP", "ja"),
    "zh": ("zh", "zh_CN", "zh-CN", "zh-cn"),
}
"""Codes of a language in the paths above: {0} plain, {1} with an underscore, {2} with the country, {3} of Apache."""
KICAD_PACKAGES = [f"kicad-doc-{code}" for code in LANGUAGE_CODES]
TITLES = ["octave-doc", "nut-doc", "postfix-doc", "openvswitch-doc", "borgbackup-doc"]
SNIPPETS = ["python-django-doc", "python-sqlalchemy-doc", "cython-doc", "numba-doc"]
DESKTOP = """
pidgin-data rhythmbox-data hexchat-common bluefish-data lyx-common shotwell-common remmina-common deja-dup
filezilla-common simple-scan synaptic geany-common
""".split()  # noqa: SIM905
COMMAND_LINE = """
git gcc-12-locales gnupg-l10n mercurial-common wget cryptsetup subversion
""".split()  # noqa: SIM905
FREEDICT = {code: f"dict-freedict-{part}" for code, part in (("de", "deu-eng"), ("fr", "fra-eng"), ("es", "spa-eng"))}
FREEDICT["ja"] = "dict-freedict-jpn-fra"
TERMS = ["dict-jargon"]
TRAINED_TERMS = "dict-foldoc"
"""Trained on: its terms, many of them the Jargon File's, are left out."""
MANUAL_PAGES = """
netpbm libcurl4-doc libssl-doc ncurses-doc tcllib lvm2 samba-common-bin graphviz
""".split()  # noqa: SIM905
GO = """
golang-golang-x-image-dev golang-golang-x-crypto-dev golang-github-spf13-afero-dev golang-github-emirpasic-gods-dev
golang-github-go-git-go-git-dev golang-github-miekg-dns-dev
""".split()  # noqa: SIM905
DEBIAN = sorted(
    {
        *FAQ, *TRANSLATED_FAQ, *KICAD_PACKAGES, *TITLES, *SNIPPETS, *DESKTOP, *COMMAND_LINE, *FREEDICT.values(), *TERMS,
        TRAINED_TERMS, *MANUAL_PAGES, *GO,
    }
)  # fmt: skip
PYTHON = """
cattrs==26.2.1 control==0.10.2 dulwich==1.2.21 ezdxf==1.4.5 feedparser==6.0.14 fonttools==4.68.0 funcy==2.1
glom==25.12.0 icalendar==7.3.2 jedi==0.20.1 lark==1.3.1 lifelines==0.30.3 marshmallow==4.4.0 mido==1.3.3
mistune==3.4.0 parso==0.8.7 pdfminer.six==20260107 pint==0.25.3 pulp==3.3.2 pyrsistent==0.20.0 rdflib==7.6.0
skyfield==1.55 trimesh==5.2.0
""".split()  # noqa: SIM905
TRAINED_APPLICATIONS = tuple(
    """
libreoffice krita kdevelop vlc cinnamon wesnoth gnucash gimp inkscape evolution nautilus kdenlive digikam
audacity gnumeric freeciv tuxpaint gnome-control-center kmymoney aptitude
""".split()  # noqa: SIM905
)
"""Beginnings of the names of applications whose catalogues were trained on."""
