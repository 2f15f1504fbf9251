"""Certificates: their form, the files that hold many of them, and how long the local CA lives. The pins read keys out
of certificates with it; `proxy.policyfile` and `proxy.engine` read files of trusted roots; the addon for pinning checks
the form of a server's certificate.

Offers:

- `bundles`: BadBundle, Bundle, read_bundle; a PEM file of trusted roots
- `constraints`: Constraints, TooMany; for which hosts a CA may sign
- `crls`: ends_of; until when revocation lists are good
- `der`: BIT_STRING, SEQUENCE, Element, element, elements, encoded, to_be_signed; the parts of a DER structure
- `forms`: form_defect; what is wrong with the form of a certificate
- `localca`: Lifetime, Mandate; when and for whom the local CA may sign, and when to warn of its end
- `serving`: BadServerCertificate, BadServerKey, ServerCertificate, read_server_certificate; what a mirror listener
  shows
- `words`: MOST_NAMES, OF_CRLS, circumstances, host_names, remedy, shown_name, whose; what a refused certificate itself
  has to do with it, and what to do
"""
