import TrustKit

let baseDomain = "datatheorem.example"

let trustKitConfig = [
    kTSKSwizzleNetworkDelegates: false,
    kTSKPinnedDomains: [
        baseDomain: [
            kTSKIncludeSubdomains: NSNumber(value: true),
            kTSKEnforcePinning: true,
            kTSKPublicKeyHashes: [
                "HXXQgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY=",
                /* "AAAAgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY=", */
                "0SDf3cRToyZJaMsoS17oF72VMavLxj/N7WBNasNuiR8="
            ],
        ],
        "www.datatheorem.example": [
            kTSKExpirationDate: "2099-12-01",
            kTSKEnforcePinning: false,
            kTSKPublicKeyHashes: ["HXXQgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY=", secondPin],
        ]]] as [String: Any]
