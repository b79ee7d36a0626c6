# SPDX-License-Identifier: Apache-2.0
"""Published guidance that an audit's annex refers to, and which of its statements answer it.

Only what could be verified is cited as a fact; the rest is listed as to be checked against the publication. None of
these texts certifies an audit, and none sets a threshold for epsilon.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Standard:
    """A publication.

    Args:
        name: Its title.
        published: Publisher and date.
        link: Where it is found.
        scope: What it is about, and how far it applies here.
        topics: What it asks for, and where this annex answers it.
        to_be_checked: What must be compared with the publication before it is cited.
    """

    name: str
    published: str
    link: str
    scope: str
    topics: tuple[tuple[str, str], ...]
    to_be_checked: tuple[str, ...] = ()


STANDARDS = (
    Standard(
        name="SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees",
        published="NIST, March 2025",
        link="https://doi.org/10.6028/NIST.SP.800-226",
        scope="How to evaluate a claim of differential privacy. Its pyramid has the privacy parameter at the top and "
        "what the parameter relies on below it. It sets no universal threshold for epsilon.",
        topics=(
            ("privacy parameter", "mechanisms: epsilon over all rounds, for both adjacencies, with its delta"),
            ("unit of privacy", "unit_of_privacy"),
            ("algorithms and their correctness", "implementation: the result of recon verify, if there is one"),
            ("trust model and security", "trust_model, attack_classes"),
            ("data collection exposure", "not part of this audit: clients keep their images, and what they collect "
             "and store is not examined"),
        ),
        to_be_checked=("the names and the order of the pyramid's tiers",),
    ),
    Standard(
        name="AI 100-2 E2025, Adversarial Machine Learning: A Taxonomy and Terminology of Attacks and Mitigations",
        published="NIST, March 2025",
        link="https://doi.org/10.6028/NIST.AI.100-2e2025",
        scope="Names classes of attacks. Those of its privacy attacks are the classes in this annex.",
        topics=(
            ("data reconstruction", "attack_classes"),
            ("membership inference", "attack_classes: bounded where the mechanism allows it, not run"),
            ("property inference, model extraction", "attack_classes: out of scope"),
            ("poisoning, evasion", "attack_classes: out of scope"),
        ),
        to_be_checked=("the identifiers NISTAML.032 (data reconstruction), .033 (membership inference), .034 (property "
                       "inference) and .031 (model extraction), which secondary sources give",),
    ),
    Standard(
        name="TechDispatch 1/2025, Federated Learning",
        published="European Data Protection Supervisor, June 2025",
        link="https://www.edps.europa.eu/data-protection/our-work/publications/techdispatch_en",
        scope="Names leakage through model updates, gradients or weights, as a primary concern of federated learning. "
        "This audit measures that leakage.",
        topics=(("leakage through model updates", "attack_classes, result"),),
        to_be_checked=("the month of publication", "what it recommends on differential privacy"),
    ),
    Standard(
        name="Opinion 28/2024 on certain data protection aspects related to the processing of personal data in the "
        "context of AI models",
        published="European Data Protection Board, 17 December 2024",
        link="https://www.edpb.europa.eu/our-work-tools/our-documents/opinion-board-art-64/"
        "opinion-282024-certain-data-protection-aspects_en",
        scope="Concerns trained models, not updates in transit, which this audit attacks, so it applies by analogy. "
        "Resistance to tests of state-of-the-art attacks is evidence for resistance to these attacks only.",
        topics=(
            ("resistance to attacks, reconstruction among them (paragraph 55)", "attack_classes, result"),
            ("documentation (paragraph 58)", "mechanisms, versions, inputs"),
        ),
        to_be_checked=("the paragraph numbers",),
    ),
)  # fmt: skip
